"""The HTML edition: executed notebooks, figures and claims as pages that need no server and no internet."""
