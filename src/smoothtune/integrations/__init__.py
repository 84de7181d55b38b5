"""Our terms in other libraries' trainers, and our models in their files. No module imports another library than its own."""
