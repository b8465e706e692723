"""The chat: a conversation, the loop for a person at a terminal, and those for lines in a pipe. Nothing here
imports the engine."""
