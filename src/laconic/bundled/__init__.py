"""Files that come with laconic; `laconic.data` and `laconic.backbone` read them."""
