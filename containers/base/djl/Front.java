import ai.djl.inference.streaming.ChunkedBytesSupplier;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.ndarray.BytesSupplier;
import ai.djl.util.JsonUtils;
import io.netty.buffer.ByteBufUtil;
import io.netty.buffer.Unpooled;
import io.netty.channel.ChannelFutureListener;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.SimpleChannelInboundHandler;
import io.netty.handler.codec.http.DefaultFullHttpResponse;
import io.netty.handler.codec.http.DefaultHttpContent;
import io.netty.handler.codec.http.DefaultHttpResponse;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.FullHttpResponse;
import io.netty.handler.codec.http.HttpHeaderNames;
import io.netty.handler.codec.http.HttpHeaderValues;
import io.netty.handler.codec.http.HttpHeaders;
import io.netty.handler.codec.http.HttpMethod;
import io.netty.handler.codec.http.HttpResponse;
import io.netty.handler.codec.http.HttpResponseStatus;
import io.netty.handler.codec.http.HttpUtil;
import io.netty.handler.codec.http.HttpVersion;
import io.netty.handler.codec.http.LastHttpContent;
import io.netty.handler.codec.http.QueryStringDecoder;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** One per connection: requests become Inputs, Outputs become responses. */
final class Front extends SimpleChannelInboundHandler<FullHttpRequest> {

    private static final Logger LOG = LoggerFactory.getLogger("Front");
    private static final Logger ACCESS = LoggerFactory.getLogger("ACCESS_LOG");

    private static final ExecutorService WRITERS = Executors.newCachedThreadPool(task -> {
        Thread thread = new Thread(task, "writer");
        thread.setDaemon(true);
        return thread;
    });

    private final Settings settings;
    private final Worker worker;
    private volatile Input current;

    Front(Settings settings, Worker worker) {
        this.settings = settings;
        this.worker = worker;
    }

    @Override
    protected void channelRead0(ChannelHandlerContext ctx, FullHttpRequest request) {
        Reply reply = new Reply(ctx, request);
        try {
            if (!request.decoderResult().isSuccess()) {
                throw new HttpError(400, "BadRequestException", "Invalid HTTP message.");
            }
            QueryStringDecoder query = new QueryStringDecoder(request.uri());
            // Upstream's pattern takes anything below these two as well.
            switch (query.path().replaceFirst("^(/ping|/invocations)/.*", "$1")) {
                case "/ping" -> ping(reply);
                case "/metrics" -> metrics(reply);
                case "/invocations", "/v1/chat/completions" -> invoke(reply, request, query);
                default -> throw HttpError.unknown();
            }
        } catch (HttpError e) {
            reply.error(e);
        } catch (RuntimeException e) {
            LOG.error("RequestId=[{}]", reply.requestId, e);
            reply.error(HttpError.of(500, e));
        }
    }

    @Override
    public void channelInactive(ChannelHandlerContext ctx) {
        if (current != null) {
            current.setCancelled(true);
        }
    }

    @Override
    public void exceptionCaught(ChannelHandlerContext ctx, Throwable cause) {
        LOG.error("Connection failed", cause);
        ctx.close();
    }

    private void ping(Reply reply) {
        String status = worker.status();
        reply.json("FAILED".equals(status) ? 500 : 200, Map.of(settings.modelName(), Map.of("status", status)));
    }

    /**
     * Prometheus text, as the real server with SERVING_PROMETHEUS=true. There it is made of lines that the handler
     * prints; here of the files that it leaves beside the server (serve/metrics.py), one for each worker.
     */
    private void metrics(Reply reply) throws HttpError {
        if (settings.metrics() == null) {
            throw HttpError.unknown();
        }
        Set<String> lines = new LinkedHashSet<>(); // each worker's file repeats the comments
        try (DirectoryStream<Path> files = Files.newDirectoryStream(settings.metrics(), "metrics-*.prom")) {
            for (Path file : files) {
                lines.addAll(Files.readAllLines(file));
            }
        } catch (IOException e) {
            throw HttpError.of(500, e);
        }
        reply.text(String.join("\n", lines) + '\n');
    }

    private void invoke(Reply reply, FullHttpRequest request, QueryStringDecoder query) throws HttpError {
        Input input = input(request, query);
        input.addProperty("requestId", reply.requestId);
        String name = query.parameters().getOrDefault("model_name", List.of("")).get(0);
        name = name.isEmpty() ? input.getProperty("model_name", settings.modelName()) : name;
        if (!name.equals(settings.modelName())) {
            throw new HttpError(404, "ModelNotFoundException", "Model or workflow not found: " + name);
        }
        if (HttpMethod.OPTIONS.equals(request.method())) {
            reply.json(200, Map.of());
            return;
        }
        current = input;
        worker.submit(input).whenCompleteAsync((output, error) -> finish(reply, output, error), WRITERS);
    }

    /** Upstream RequestParser: the query is content, the headers are properties, the body is "data". */
    private static Input input(FullHttpRequest request, QueryStringDecoder query) throws HttpError {
        Input input = new Input();
        query.parameters().forEach((key, values) -> values.forEach(value -> input.add(key, value)));
        for (Map.Entry<String, String> header : request.headers().entries()) {
            if (!"X-Amzn-SageMaker-Custom-Attributes".equalsIgnoreCase(header.getKey())) {
                input.addProperty(header.getKey(), header.getValue());
                continue;
            }
            for (String attribute : header.getValue().split(";")) {
                String[] pair = attribute.split("=", 2);
                if (pair.length == 2) {
                    input.addProperty(pair[0].trim(), pair[1].trim());
                }
            }
        }
        CharSequence type = HttpUtil.getMimeType(request);
        if (type != null && type.toString().matches("(?i)multipart/.*|application/x-www-form-urlencoded")) {
            throw new HttpError(415, "BadRequestException", "Forms are not implemented by this local server: " + type);
        }
        String async = input.getProperty("x-synchronous", "true") + input.getProperty("x-starting-token", "");
        if (!"true".equals(async)) {
            throw new HttpError(501, "BadRequestException", "Only synchronous requests are implemented here");
        }
        if (input.getProperty("handler", null) != null) {
            throw new HttpError(400, "BadRequestException", "The handler can't be overridden in a request");
        }
        input.add("data", ByteBufUtil.getBytes(request.content()));
        return input;
    }

    private void finish(Reply reply, Output output, Throwable error) {
        try {
            if (error instanceof HttpError httpError) {
                LOG.warn("RequestId=[{}]: {}", reply.requestId, error.getMessage());
                reply.error(httpError);
            } else if (output != null) { // null: the client left before its turn
                reply.output(output, settings.chunkedReadTimeout());
            }
        } catch (InterruptedException | IllegalStateException e) { // the next chunk did not come in time
            LOG.warn("RequestId=[{}] Chunk reading interrupted", reply.requestId, e);
            reply.ctx.disconnect();
        } catch (RuntimeException e) { // Netty refuses a header or a reason phrase with a newline in it
            LOG.warn("RequestId=[{}]: Unexpected error", reply.requestId, e);
            reply.error(HttpError.of(500, e));
        }
    }

    /** Writes one response. Upstream NettyUtils.sendHttpResponse and InferenceRequestHandler.sendOutput. */
    private static final class Reply {
        private final ChannelHandlerContext ctx;
        private final String requestId;
        private final String line;
        private final long began = System.nanoTime();

        Reply(ChannelHandlerContext ctx, FullHttpRequest request) {
            this.ctx = ctx;
            this.requestId = request.headers().get("x-request-id", UUID.randomUUID().toString());
            this.line = ctx.channel().remoteAddress() + " \"" + request.method() + ' ' + request.uri() + ' '
                    + request.protocolVersion() + '"';
        }

        void json(int code, Object body) {
            FullHttpResponse response =
                    new DefaultFullHttpResponse(HttpVersion.HTTP_1_1, HttpResponseStatus.valueOf(code));
            response.headers().set(HttpHeaderNames.CONTENT_TYPE, HttpHeaderValues.APPLICATION_JSON);
            response.content().writeCharSequence(JsonUtils.GSON_PRETTY.toJson(body) + '\n', StandardCharsets.UTF_8);
            send(response, code >= 400);
        }

        void text(String body) {
            FullHttpResponse response = new DefaultFullHttpResponse(HttpVersion.HTTP_1_1, HttpResponseStatus.OK);
            response.headers().set(HttpHeaderNames.CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
            response.content().writeCharSequence(body, StandardCharsets.UTF_8);
            send(response, false);
        }

        void error(HttpError e) {
            Map<String, Object> body = new LinkedHashMap<>();
            body.put("code", e.code);
            body.put("type", e.type);
            body.put("message", e.getMessage());
            json(e.code, body);
        }

        void output(Output output, int chunkedReadTimeout) throws InterruptedException {
            BytesSupplier data = output.getData();
            HttpResponseStatus status = status(output); // fails early when there is a newline in it
            if (!(data instanceof ChunkedBytesSupplier chunks)) {
                full(output, status, data == null ? null : data.getAsBytes());
                return;
            }
            byte[] chunk = chunks.nextChunk(chunkedReadTimeout, TimeUnit.SECONDS);
            // The rolling batch sets code, message and properties with the first chunk: read them again.
            status = new HttpResponseStatus(output.getCode(), output.getMessage());
            if (!chunks.hasNext()) {
                full(output, status, chunk);
                return;
            }
            HttpResponse head = new DefaultHttpResponse(HttpVersion.HTTP_1_1, status);
            output.getProperties().forEach((key, value) -> head.headers().set(key, value));
            send(head, false);
            write(chunk);
            while (chunks.hasNext()) {
                write(chunks.nextChunk(chunkedReadTimeout, TimeUnit.SECONDS));
            }
            ctx.writeAndFlush(LastHttpContent.EMPTY_LAST_CONTENT);
        }

        private static HttpResponseStatus status(Output output) {
            return output.getCode() == 200
                    ? HttpResponseStatus.OK
                    : new HttpResponseStatus(output.getCode(), output.getMessage());
        }

        private void write(byte[] chunk) {
            ctx.writeAndFlush(new DefaultHttpContent(Unpooled.wrappedBuffer(chunk)));
        }

        private void full(Output output, HttpResponseStatus status, byte[] body) {
            FullHttpResponse response = new DefaultFullHttpResponse(HttpVersion.HTTP_1_1, status);
            output.getProperties().forEach((key, value) -> response.headers().set(key, value));
            if (body != null) {
                response.content().writeBytes(body);
            }
            send(response, status.code() >= 400);
        }

        private void send(HttpResponse response, boolean close) {
            HttpHeaders headers = response.headers();
            headers.set("x-request-id", requestId);
            headers.set("Pragma", "no-cache");
            headers.set("Cache-Control", "no-cache; no-store, must-revalidate, private");
            headers.set("Expires", "Thu, 01 Jan 1970 00:00:00 UTC");
            if (response instanceof FullHttpResponse full) {
                HttpUtil.setContentLength(response, full.content().readableBytes());
            } else {
                HttpUtil.setTransferEncodingChunked(response, true);
            }
            headers.set(HttpHeaderNames.CONNECTION, close ? HttpHeaderValues.CLOSE : HttpHeaderValues.KEEP_ALIVE);
            long millis = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - began);
            ACCESS.info("{} {} {}", line, response.status().code(), millis);
            var written = ctx.writeAndFlush(response);
            if (close) {
                written.addListener(ChannelFutureListener.CLOSE);
            }
        }
    }
}
