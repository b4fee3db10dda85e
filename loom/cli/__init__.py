"""The `loom-node` command. `main` knows the commands by name; each one's module is loaded when it is called."""
