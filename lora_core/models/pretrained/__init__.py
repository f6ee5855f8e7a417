"""Published checkpoints and saved models: source finds and reads a folder's files, loading makes a model of them."""
