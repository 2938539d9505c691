"""The embedded reference models: how they are made, trained and described."""
