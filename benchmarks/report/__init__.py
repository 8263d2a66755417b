"""The page of all reports."""
