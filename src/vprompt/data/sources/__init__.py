"""Sources of labelled images, one file each; `vprompt.data.sources.base` says what a source does."""
