"""What `lora-core predict` reads and writes: files of every form in, a line for each input out.

May import trainers.serve and what lies below it; the command line imports it."""
