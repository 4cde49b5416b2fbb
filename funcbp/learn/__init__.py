"""The learning library: it stands on the engine, which never imports it."""
