"""What a client uploads: an image and perhaps its camera, within limits; everything else is refused with a sentence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import python_multipart  # noqa: F401 - Starlette's parser of forms needs it, and would say so at the first upload only
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from relocalizer.errors import UserError

MAX_BODY_BYTES = 32 * 2**20  # size of a request
MAX_CAMERA_BYTES = 64 * 2**10  # size of a calibration file
UPLOAD_S = 60.0  # time in which a request has to arrive, seconds
FIELDS = ("image", "camera")
HOW = "send the image as the form field 'image' (multipart/form-data), or as the body with Content-Type image/jpeg"


class UploadError(UserError):
    """A request that cannot be answered; `status` is its HTTP status."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes of an image file, and of a calibration file if there is one."""

    image: bytes
    camera: bytes | None = None


async def read_upload(request: Request) -> Upload:
    """The image and the camera of a request.

    Raises:
        UploadError: it is too large, too slow, cut off, or has not the form that is described in docs/serving.md.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UploadError(415, "Content-Encoding: send the request without compression; images are compressed already")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise _too_large()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(UPLOAD_S):
            if kind == "multipart/form-data":
                upload = await _of_form(request)
            elif kind.startswith("image/") or kind == "application/octet-stream":
                upload = Upload(b"".join([chunk async for chunk in _limited(request)]))
            else:
                raise UploadError(415, f"Content-Type {kind or 'missing'}: {HOW}")
    except TimeoutError:
        raise UploadError(408, f"the request did not arrive within {UPLOAD_S:g} seconds; send it again") from None
    except ClientDisconnect:
        raise UploadError(400, "the request was cut off before its end; send it again") from None
    if not upload.image:
        raise UploadError(400, f"the image is empty; {HOW}")
    return upload


def _too_large() -> UploadError:
    return UploadError(413, f"the request is larger than {MAX_BODY_BYTES // 2**20} MiB; send a smaller image")


async def _limited(request: Request) -> AsyncGenerator[bytes]:
    """The body of a request in pieces. Raises UploadError when it is too large."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        yield chunk


async def _of_form(request: Request) -> Upload:
    parser = MultiPartParser(
        request.headers, _limited(request), max_files=2, max_fields=2, max_part_size=MAX_CAMERA_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise UploadError(400, f"the form cannot be read: {error.message}; {HOW}") from None
    try:
        return await _of_fields(form)
    finally:
        await form.close()


async def _of_fields(form: FormData) -> Upload:
    for name, _ in form.multi_items():
        if name not in FIELDS:
            raise UploadError(400, f"unknown form field {name[:40]!r}; expected {' and '.join(FIELDS)}")
        if len(form.getlist(name)) > 1:
            raise UploadError(400, f"form field {name!r} is there more than once; send one image at a time")
    image, camera = form.get("image"), form.get("camera")
    if not isinstance(image, UploadFile):
        raise UploadError(400, f"the form has no file in its field 'image'; {HOW}")
    if isinstance(camera, UploadFile):
        if (camera.size or 0) > MAX_CAMERA_BYTES:
            raise UploadError(413, f"camera: larger than {MAX_CAMERA_BYTES // 1024} KiB, so not a calibration file")
        camera_bytes: bytes | None = await camera.read()
    else:
        camera_bytes = camera.encode() if camera is not None else None
    # A browser sends an empty file where none was chosen.
    return Upload(await image.read(), camera_bytes or None)
