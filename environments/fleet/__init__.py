"""Real language-model servers: their description, queues, health and the wire to them."""
