"""Plans that come with laconic."""
