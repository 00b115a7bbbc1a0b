#version 330 core
// Positions arrive projected and snapped: x and y in clip space, z the normalised screen depth.
layout(location = 0) in vec3 position;

void main()
{
    gl_Position = vec4(position, 1.0);
}
