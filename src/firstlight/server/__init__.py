"""The OpenAI-compatible API over replicas, which it sees through messages only."""
