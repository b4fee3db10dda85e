"""The edges: bridge, dashboard, ray, desktop, audio, demo. They import much; only the command line imports them."""
