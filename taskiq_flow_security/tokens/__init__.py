"""Signed things: principals and results (JWT), messages (detached JWS). Takes the time as an argument, does no I/O."""
