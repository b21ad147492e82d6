"""The player's window and what feeds it. lanes, counters, clock, link and sessions know nothing of Qt."""
