"""Examples in, batches out. The rooms tokens, texts and images each have
a reader and an encoder; what they share lies here.

May import trainers.config and trainers.show; everything above imports it."""
