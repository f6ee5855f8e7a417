"""The service: exported models and runs over HTTP (`lora-core serve`), with the extra `serve` (FastAPI, uvicorn).

server.py starts processes; in each, app.py has the addresses, inputs.py checks what requests hold, models.py has the
models and their adapters, batches.py joins requests into batches, words.py tells which words mattered, and reload.py
puts new exports in the place of old ones. settings.py has what an operator may set.
"""
