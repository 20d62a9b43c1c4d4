"""Who calls over a network is looked at as gossip looks at peers: TLS knows nothing of revocations."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from gossip.identity import Identity, IdentityError

log = structlog.get_logger()

if TYPE_CHECKING:  # generic in the stubs alone
    Handler = grpc.RpcMethodHandler[Any, Any]
    ServerInterceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    ServerInterceptor = grpc.aio.ServerInterceptor

MAKERS = {
    (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}


class MembersOnly(ServerInterceptor):
    """Refuses every call of somebody whose certificate is no member's, or was taken back."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Put the check in front of whatever answers."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        make, name = MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        method = getattr(handler, name)

        async def checked(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await self._check(context)
            answer = method(request, context)
            if inspect.isawaitable(answer):
                return await answer
            async for message in answer:
                await context.write(message)
            return None

        return make(checked, handler.request_deserializer, handler.response_serializer)

    async def _check(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        try:
            der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii")) if pem else b""
            self._identity.member(der, at=datetime.now(UTC))
        except IdentityError as error:
            log.warning("admin.caller_refused", client=context.peer(), reason=str(error))
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"not a member of this cluster: {error}")
