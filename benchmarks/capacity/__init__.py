"""A million pairs a day: what they take, and what runs out first."""
