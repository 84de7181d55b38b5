"""The typed experiment: options of every kind, TOML, overrides, JSON Schema. Never imports torch."""
