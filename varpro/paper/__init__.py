"""The paper's runs and figures as data, what they cost, the published numbers, and ours beside them."""
