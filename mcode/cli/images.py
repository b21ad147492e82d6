"""evaluate images and manifolds import: pictures of any size, and networks trained elsewhere."""
