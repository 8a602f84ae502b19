"""Stand-in of the PJRT plug-in's package; XLA:CPU compiles in its place."""
