from hypothesis import settings

# The same examples in every run, and no time limit for one example: a busy machine is no failure.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")
