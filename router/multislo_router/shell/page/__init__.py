"""The live page (`index.html`, served by the admin listener) and the camera that takes its picture."""
