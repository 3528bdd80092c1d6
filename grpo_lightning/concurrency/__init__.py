"""Threads, an event loop and child processes for code that may hang, crash or raise anything: of rewards, tools, servers."""
