"""Predictions: of image files, of many adapters over one backbone, and over HTTP (`vprompt serve`).

`predict` and `bank` need nothing beside the library; `service` knows no web framework. It counts with
prometheus-client, and `app`, `middleware`, `schema` and `server` need FastAPI and uvicorn: all of that
comes with `pip install 'vprompt[serve]'`.
"""
