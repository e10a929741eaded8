"""How a store is reached, and the thread in which all that waits for one runs."""
