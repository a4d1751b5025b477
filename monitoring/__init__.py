"""Is it still true, and better than not doing it? Data checks, drift, realised uplift, the weekly decision."""
