"""How an LLM becomes an emulator: importance, layer plan, harmonizers, rank compression."""
