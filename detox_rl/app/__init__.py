"""The page to try a model, and its API: the only files that know FastAPI (extra `app`)."""
