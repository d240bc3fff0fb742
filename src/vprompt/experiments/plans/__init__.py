"""Plans that come with vprompt."""
