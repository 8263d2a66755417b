"""The check of a pair before it is restored: what is measured, what that means, and what is corrected."""
