"""The kernels, in reading order: `fields`, `arithmetic`, `rows`, `planes`, `state`, `results`, `finish`.

They are written in Triton's language, and run on the CPU too where `TRITON_INTERPRET=1` was set before they were
imported.
"""
