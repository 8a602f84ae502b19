import io.netty.bootstrap.ServerBootstrap;
import io.netty.channel.Channel;
import io.netty.channel.ChannelInitializer;
import io.netty.channel.ChannelOption;
import io.netty.channel.EventLoopGroup;
import io.netty.channel.nio.NioEventLoopGroup;
import io.netty.channel.socket.nio.NioServerSocketChannel;
import io.netty.handler.codec.http.HttpObjectAggregator;
import io.netty.handler.codec.http.HttpServerCodec;
import java.io.IOException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The HTTP front and the model manager of DJL Serving 0.34, for one Python model on CPU.
 *
 * <p>Everything below it is DJL itself (ai.djl.python: the worker process, its socket protocol, the
 * rolling batch). Only what the artifacts {@code serving} and {@code wlm} do is written anew here, as
 * far as this product uses it, because they cannot be had everywhere (docs/decisions/003). So that
 * nobody mistakes one for the other, an option that the real server knows and this one does not is
 * refused at start; it is never ignored. "Upstream" in a comment names the class whose behaviour the
 * rule follows; tests/server/test_djl_front.py holds both servers to it.
 */
public final class DjlServing {

    static {
        // Before the first logger and the first engine exist. Python's standard output belongs on ours.
        defaultProperty("org.slf4j.simpleLogger.logFile", "System.out");
        defaultProperty("org.slf4j.simpleLogger.levelInBrackets", "true");
        defaultProperty("org.slf4j.simpleLogger.showShortLogName", "true");
        defaultProperty("org.slf4j.simpleLogger.showThreadName", "false");
        // Upstream ConfigManager: the Python engine must not look for a second engine to help it.
        defaultProperty("ai.djl.python.disable_alternative", "true");
    }

    private static final Logger LOG = LoggerFactory.getLogger("ModelServer");

    private DjlServing() {}

    /** Exit codes as upstream's ModelServer: 1 when configuration, model or port fail; 143 on TERM. */
    public static void main(String[] args) {
        // Upstream leaves the worker running until its handler returns; a leftover on a laptop is worse.
        Runtime.getRuntime().addShutdownHook(new Thread(DjlServing::killChildren));
        try {
            Settings settings = Settings.read(args, System.getenv());
            serve(settings, new Worker(settings));
        } catch (Settings.Refused e) {
            System.err.println("djl-serving: " + e.getMessage());
            System.exit(1);
        } catch (Throwable t) { // an Error must end the process too: Python's reader threads keep it alive
            LOG.error("Unexpected error", t);
            System.exit(1);
        }
    }

    private static void defaultProperty(String key, String value) {
        System.getProperties().putIfAbsent(key, value);
    }

    private static void killChildren() {
        ProcessHandle.current().descendants().forEach(ProcessHandle::destroyForcibly);
    }

    /** Binds the port only now that the model is loaded, as upstream's ModelServer.start does. */
    private static void serve(Settings settings, Worker worker) throws InterruptedException, IOException {
        EventLoopGroup loops = new NioEventLoopGroup();
        ServerBootstrap bootstrap =
                new ServerBootstrap()
                        .group(loops)
                        .channel(NioServerSocketChannel.class)
                        .option(ChannelOption.SO_BACKLOG, 1024)
                        .childOption(ChannelOption.SO_LINGER, 0)
                        .childOption(ChannelOption.SO_KEEPALIVE, true)
                        .childHandler(
                                new ChannelInitializer<Channel>() {
                                    @Override
                                    protected void initChannel(Channel channel) {
                                        channel.pipeline()
                                                .addLast(new HttpServerCodec())
                                                .addLast(new HttpObjectAggregator(settings.maxRequestSize(), true))
                                                .addLast(new Front(settings, worker));
                                    }
                                });
        Channel listener;
        try {
            listener = bootstrap.bind(settings.host(), settings.port()).sync().channel();
        } catch (Exception e) { // Netty throws the checked BindException without declaring it
            throw new IOException("Failed to bind to address: " + settings.address(), e);
        }
        LOG.info("INFERENCE API bind to: {}", settings.address());
        listener.closeFuture().sync();
    }
}
