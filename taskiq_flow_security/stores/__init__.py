"""What all that is kept in a store stands on: how it is reached, and a thread that goes on whoever waits."""
