"""The contract of every component: protocols and category configs."""
