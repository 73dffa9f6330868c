"""Two computations side by side: the loop against generate(), one model against another, mistakes planted and found."""
