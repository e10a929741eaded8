"""Signed things: principals (JWT) and messages (detached JWS). Takes the time as an argument, does no I/O."""
