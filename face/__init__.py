"""Face geometry and image formation: shape, light, rendering, descriptors. No side effects."""
