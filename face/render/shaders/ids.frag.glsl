#version 330 core
// One more than the triangle's row, in the four bytes of the pixel, lowest first; the cleared background stays zero.
out vec4 bytes;

void main()
{
    uint id = uint(gl_PrimitiveID) + 1u;
    bytes = vec4(id & 255u, (id >> 8) & 255u, (id >> 16) & 255u, id >> 24) / 255.0;
}
