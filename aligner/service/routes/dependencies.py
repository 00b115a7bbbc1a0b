"""Parameters that several routes share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, File, Query, Request, UploadFile

from dff.aligner.service.align_service import AlignService


def get_service(request: Request) -> AlignService:
    """The application's service."""
    service: AlignService = request.app.state.service
    return service


Service = Annotated[AlignService, Depends(get_service)]
Images = Annotated[
    list[UploadFile], File(description="JPEG, PNG or WebP files: repeat the field for each")
]
Mesh = Annotated[
    bool, Query(description="also the meshes in pixels, and the triangles of the face model")
]
