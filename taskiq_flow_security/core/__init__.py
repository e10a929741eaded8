"""The pure core: who may do what. No I/O, no clock, no third-party imports."""
