import ai.djl.Device;
import ai.djl.inference.Predictor;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import ai.djl.translate.NoopServingTranslatorFactory;
import ai.djl.translate.TranslateException;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The one worker: hands the requests to the engine in their order. With a rolling batch the engine
 * answers at once with a stream to be filled, so that the next request can join the batch.
 */
final class Worker implements Runnable {

    private static final Logger LOG = LoggerFactory.getLogger("Worker");

    /** Upstream WorkerThread.isStale: so long a dead worker keeps its place in the pool. */
    private static final long STALE_NANOS = TimeUnit.SECONDS.toNanos(60);

    /** One request on its way through the queue. */
    private record Job(Input input, CompletableFuture<Output> result) {}

    private final Settings settings;
    private final BlockingQueue<Job> queue = new LinkedBlockingQueue<>();
    private final ZooModel<Input, Output> model;
    private Predictor<Input, Output> predictor;
    private volatile boolean busy;
    private volatile boolean alive;
    private volatile boolean starting;
    private volatile long diedAt;

    Worker(Settings settings) throws Exception {
        this.settings = settings;
        LOG.info("Loading model {} from {} with {}", settings.modelName(), settings.modelUrl(), settings.options());
        model = Criteria.builder()
                .setTypes(Input.class, Output.class)
                .optModelUrls(settings.modelUrl())
                .optEngine("Python")
                .optDevice(Device.cpu())
                .optOptions(settings.options())
                .optArguments(settings.arguments())
                .optTranslatorFactory(new NoopServingTranslatorFactory())
                .build()
                .loadModel();
        model.setProperty("metric_dimension", settings.modelName());
        start();
    }

    private void start() {
        predictor = model.newPredictor(); // starts the Python process and runs the handler's first call
        alive = true;
        Thread thread = new Thread(this, "WT-0001");
        thread.setDaemon(true);
        thread.start();
    }

    /** Upstream WorkLoadManager.runJob, with its sums: the last place is only for an idle worker. */
    CompletableFuture<Output> submit(Input input) throws HttpError {
        if ("FAILED".equals(status())) {
            throw new HttpError(503, "WlmException", "Model is not ready: " + settings.modelName());
        }
        int remaining = settings.queueSize() - queue.size();
        if (!alive || remaining < 1 || remaining == 1 && busy) {
            restartIfStale();
            throw new HttpError(
                    503,
                    "WlmCapacityException",
                    "Worker queue capacity exceeded for model: " + settings.modelName());
        }
        Job job = new Job(input, new CompletableFuture<>());
        queue.add(job);
        return job.result();
    }

    /** Upstream ModelInfo.getStatus and ModelManager.workerStatus. The engine counts the failures. */
    String status() {
        int threshold = model.intProperty("retry_threshold", settings.retryThreshold());
        if (model.intProperty("failed", 0) > threshold) {
            if (settings.failFast()) {
                System.exit(137);
            }
            return "FAILED";
        }
        return starting ? "Unhealthy" : "Healthy";
    }

    private synchronized void restartIfStale() {
        if (alive || starting || System.nanoTime() - diedAt < STALE_NANOS) {
            return;
        }
        starting = true;
        Thread thread = new Thread(() -> {
            try {
                start();
            } catch (RuntimeException e) {
                LOG.error("The worker could not be started again", e);
                diedAt = System.nanoTime();
            } finally {
                starting = false;
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    /** Upstream WorkerThread.run: a TranslateException is one request's, anything else the worker's end. */
    @Override
    public void run() {
        while (alive) {
            Job job;
            try {
                job = queue.take();
            } catch (InterruptedException e) {
                return;
            }
            busy = true;
            try {
                // A client that left while waiting costs no generation (upstream ModelThread.run).
                job.result().complete(
                        job.input().isCancelled() ? null : predictor.batchPredict(List.of(job.input())).get(0));
            } catch (TranslateException e) {
                LOG.warn("WT-0001: Failed to predict", e);
                job.result().completeExceptionally(HttpError.of(400, e));
            } catch (Throwable t) { // whatever it is, the client must hear of it and the worker is gone
                LOG.error("WT-0001: Server error", t);
                alive = false;
                diedAt = System.nanoTime();
                predictor.close();
                job.result().completeExceptionally(new HttpError(503, "WlmException", t.getMessage()));
            } finally {
                busy = false;
            }
        }
    }
}
