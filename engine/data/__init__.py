"""Where questions come from: task sources, published datasets, images, and answers in one spelling."""
