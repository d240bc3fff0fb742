"""One file a format; `vprompt.exporters.base.FORMATS` finds them. None imports a slow library before it is used."""
