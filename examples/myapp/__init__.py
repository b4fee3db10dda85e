"""The actors that examples/index.toml names."""
