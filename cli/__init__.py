"""The commands: `allotment up`, `balance`, `grant` and the others, one file a group."""
