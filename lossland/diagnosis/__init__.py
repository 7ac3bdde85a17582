"""Why did it rise? Checks of what training is fed, and causes with the numbers that speak for them."""
