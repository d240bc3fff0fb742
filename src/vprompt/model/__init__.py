"""A backbone with a method: attach, run, fold, save, load, count."""
